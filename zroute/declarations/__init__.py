"""What decorators record, and what is planned for each function before anything runs. Pure: no socket, no reactor."""
