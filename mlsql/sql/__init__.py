"""Design to SQL text: pure functions that build trees.  Nothing here sees a connection."""
