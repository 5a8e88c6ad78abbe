"""The trained orchestrator in use."""
