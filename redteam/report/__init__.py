"""What the pages of all threats share: a base template with its macros, figures, colours, siblings and words."""
