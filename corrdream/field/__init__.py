"""The scene that is trained: encodings, the radiance field, the background."""

from corrdream.field.background import NetworkBackground, SolidBackground
from corrdream.field.encodings import DenseGrid, FrequencyEncoding, HashGrid, SphericalHarmonics
from corrdream.field.radiance_field import NormalKind, RadianceField

__all__ = [
    "DenseGrid",
    "FrequencyEncoding",
    "HashGrid",
    "NetworkBackground",
    "NormalKind",
    "RadianceField",
    "SolidBackground",
    "SphericalHarmonics",
]
