"""Models routing of queries among language models as a Gymnasium environment, `Leeroo-v0`."""

from gymnasium.envs.registration import register

from leeroo_env.env import LeerooEnv
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable
from leeroo_env.vector_env import LeerooVectorEnv

__all__ = ["ExpertTable", "InputError", "LeerooEnv", "LeerooVectorEnv"]
__version__ = "0.1.0"

register(
    id="Leeroo-v0",
    entry_point="leeroo_env.env:LeerooEnv",
    vector_entry_point="leeroo_env.vector_env:LeerooVectorEnv",
)
