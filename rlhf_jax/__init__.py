"""InstructGPT, whole, in JAX and Flax: the library that experiments/ is written with."""
