"""How the nodes stay alike: what they say to each other through Redis, and what each does about what it hears."""
