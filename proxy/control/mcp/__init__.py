"""MCP: the door's verbs as tools for AI agents, with resources to read and prompts to begin with.

Served by the official SDK over streamable HTTP at `/mcp` (`mount`), without sessions: each request shows who it is, and
any of them can be answered after a restart. Names and inputs of the eight tools are a promise (design, section 7). Every
call leaves an entry in the audit log, the looking ones too: an agent's reasons are worth more when one sees what it looked at.

The SDK is slow to import: `server`, `prompts` and `stdio` take it with them, and are themselves imported only when they are
used.
"""
