"""The checks of annotations at run time: beartype's, with three things that it cannot know."""

import flax.struct
import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for (PEP 484), as pyright holds.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# JAX rebuilds trees with whatever it made of their leaves, such as shapes or axes, so constructors
# of trees take anything; the functions that use them are checked.
flax.struct.PyTreeNode.__no_type_check__ = True

# What takes arrays of JAX takes NumPy's: tests and programs hand over both.
jaxtyping.Array = jax.Array | np.ndarray
