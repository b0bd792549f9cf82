"""Recipes of no preset, so that a test of one ingredient stays as it is when presets change."""

from edgeq.recipe.recipe import Recipe
from edgeq.recipe.settings import defaults

PLAIN = defaults("plain")


def plain_recipe(**settings) -> Recipe:
    """Make a recipe with what plain rounding has where a test says nothing else."""
    return Recipe(**{**PLAIN, **settings})
