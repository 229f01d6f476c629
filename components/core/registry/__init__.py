"""Published models: what each is, which of them is the champion, and how they come and go. Imports neither torch nor kfp."""
