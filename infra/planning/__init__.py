"""What an installation of a given load needs and costs, before there is one: `adclick plan`."""
