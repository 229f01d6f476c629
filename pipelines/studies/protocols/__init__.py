"""The challenge organisers' two ways to measure a network: whole experiments held out, or random wells."""
