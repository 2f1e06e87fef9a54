"""What an iteration costs, in closed form: messages, work, memory, and with measured rates the time."""
