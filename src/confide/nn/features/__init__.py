"""Fixed public features: nothing in them is learned from anybody, so only the linear layer on them costs privacy."""

from confide.nn.features.fixed import FeatureModel, FixedFeatures, features_named
from confide.nn.features.heads import hog, scattering
from confide.nn.features.hog import HOG
from confide.nn.features.scattering import Scattering2d

__all__ = ["HOG", "FeatureModel", "FixedFeatures", "Scattering2d", "features_named", "hog", "scattering"]
