"""`adclick demo`: a private stack, a day of events, and every answer compared with the generator's truth."""
