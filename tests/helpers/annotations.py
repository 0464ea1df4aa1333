"""Run-time checks of annotations by beartype, with three adaptations to this code."""

import flax.struct
import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

# An int is accepted as a float (PEP 484), as by pyright.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# JAX rebuilds trees from arbitrary leaves, such as shapes or axes, so constructors of trees accept
# anything; the functions that use the trees are checked.
flax.struct.PyTreeNode.__no_type_check__ = True

# Functions of JAX arrays accept NumPy's as well: tests and programs pass both.
jaxtyping.Array = jax.Array | np.ndarray
