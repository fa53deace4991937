"""`adclick rebuild`: what was lost is made again from what is left, by one command for each store."""
