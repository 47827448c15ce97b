"""LAVISH: Vision Transformers are Parameter-Efficient Audio-Visual Learners."""

# Its config has a sub-config of any type, which needs transformers' Auto classes. Their import registers all architectures, so it
# has to come before the module of the config, which would otherwise be only half imported when it is registered.
import transformers.models.auto.configuration_auto  # noqa: F401
