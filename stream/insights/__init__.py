"""What the numbers mean: series of a campaign's measures, and what is unusual in them."""
