"""Matrix products in the forms that XLA:CPU computes quickest; values are the plain product's.

Only programs for CPUs hold them: the choice is made when a program is lowered for a platform.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def wide_product(rows: Float[Array, "N D"], kernel: Float[Array, "D V"]) -> Float[Array, "N V"]:
    """rows · kernel in float32 or wider, whose gradient is quick on a CPU for large V."""
    return jnp.dot(rows, kernel)


def wide_product_gradients(operands, gradient):
    """Gradients of rows · kernel for both operands, given that of the product."""
    rows, kernel = operands
    # Turned before the product: XLA:CPU takes 1.7 times as long to contract two leading axes.
    transposed = jax.lax.platform_dependent(
        rows, cpu=lambda x: jax.lax.optimization_barrier(x.T), default=jnp.transpose
    )
    return gradient @ kernel.T, transposed @ gradient


wide_product.defvjp(lambda *operands: (wide_product(*operands), operands), wide_product_gradients)


def transposed_product(
    rows: Float[Array, "N In"], transposed: Float[Array, "Out In"]
) -> Float[Array, "N Out"]:
    """rows · transposedᵀ, with the large operand on the left.

    XLA:CPU packs the right operand anew in each call. With a few rows and the kernel on the right
    that is most of the time; so the rows stand there, and the result is transposed back.
    """
    product = jax.lax.dot_general(transposed, rows, (((1,), (1,)), ((), ())))
    # The barrier keeps the compiler from swapping the operands to save the transposition.
    return jax.lax.optimization_barrier(product).T
