"""Tools: the protocol, tool calls parsed on token ids, and their execution."""
