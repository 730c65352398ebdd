"""Newton-CG for graph-and-session code: a ``tf.compat.v1.train.Optimizer``.

It takes the same step as :class:`ncg_cuda.tf.NewtonCG`, in a ``tf.Graph`` that a ``tf.compat.v1.Session`` runs (or in a
``tf.function``), on resource variables and on classic reference variables, with control flow of either version::

    step = ncg_cuda.tf.v1.NewtonCGOptimizer(learning_rate=1.0, tau=0.1)
    train_op = step.minimize(loss, global_step=tf.compat.v1.train.get_or_create_global_step())
    _, report = session.run([train_op, step.last_step])
"""

from .optimizer import NewtonCGOptimizer

__all__ = ["NewtonCGOptimizer"]
