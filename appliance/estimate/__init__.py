"""Memory arithmetic: pure functions from model facts to bytes."""
