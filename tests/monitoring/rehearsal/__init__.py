"""`make rehearse-alerts`: each alert is caused on a stack, seen to fire, handled as its runbook says, and seen to end."""
