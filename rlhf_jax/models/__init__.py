"""Networks and heads: the only room that knows Flax."""
