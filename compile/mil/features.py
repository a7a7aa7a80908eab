"""The interface that a package describes to its callers, against the function's own declarations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamamba.compile.mil.values import Type
from lamamba.errors import InputError

# ArrayFeatureType.ArrayDataType
ARRAY_DTYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131080: "int8", 131104: "int32"}


def check_features(
    description: Any, function: str, inputs: Mapping[str, Type], outputs: Mapping[str, Type], where: str
) -> None:
    """InputError if the described inputs or outputs differ from the function's in name, shape or dtype.

    A scalar is described as an array of one element; sizes that are not described, or flexible, are not compared.
    """
    found = [f for f in description.functions if f.name == function]
    described = found[0] if found else description
    for kind, features, declared in (("input", described.input, inputs), ("output", described.output, outputs)):
        names = [feature.name for feature in features]
        if sorted(names) != sorted(declared):
            got, expected = ", ".join(sorted(names)), ", ".join(sorted(declared))
            raise InputError(f"{where}: describes the {kind}s {got}, its function {function} has {expected}")
        for feature in features:
            check_feature(feature, declared[feature.name], f"{where}, {kind} {feature.name}")


def check_feature(feature: Any, declared: Type, where: str) -> None:
    """InputError if a feature is no array, or one of another shape or dtype than declared."""
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise InputError(f"{where}: of the kind {kind}, expected an array (multiArrayType)")
    array = feature.type.multiArrayType
    dtype, shape = ARRAY_DTYPES.get(array.dataType, str(array.dataType)), tuple(array.shape)
    flexible = array.WhichOneof("ShapeFlexibility") is not None or None in declared.shape
    if dtype != declared.dtype or (shape and not flexible and shape != (declared.shape or (1,))):
        raise InputError(f"{where}: described as {dtype}{list(shape)}, declared {declared}")
