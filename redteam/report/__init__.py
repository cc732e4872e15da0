"""What the pages of all threats share: the template's environment, plots, curves and words."""
