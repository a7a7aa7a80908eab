"""Every supported op of MIL by its name; what an op means is documented in coremltools' op definitions."""

from __future__ import annotations

from collections.abc import Mapping

from lamamba.compile.mil.calls import Op
from lamamba.compile.mil.ops_elementwise import ELEMENTWISE
from lamamba.compile.mil.ops_indexing import INDEXING
from lamamba.compile.mil.ops_network import NETWORK
from lamamba.compile.mil.ops_shape import SHAPE
from lamamba.compile.mil.ops_spatial import SPATIAL
from lamamba.compile.mil.ops_weights import WEIGHTS

OPS: Mapping[str, Op] = {**ELEMENTWISE, **NETWORK, **SPATIAL, **SHAPE, **INDEXING, **WEIGHTS}
# Everywhere else the floats that enter an op are of one dtype.
MIXED_FLOATS = frozenset(WEIGHTS) | {"scaled_dot_product_attention"}
