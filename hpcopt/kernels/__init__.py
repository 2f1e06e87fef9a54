"""The hot products of a fully connected network behind one interface, once an array library."""
