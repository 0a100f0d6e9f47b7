"""What a run computes, independent of its data: the model, the layout of its state, and the compiled steps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from glide_jax.compute import check_device
from glide_jax.data.examples import Shapes, empty_batch
from glide_jax.data.transforms import Size
from glide_jax.diffusion.schedules import Schedule
from glide_jax.models import Glide, Params
from glide_jax.models.lora import GROUP, stored_type
from glide_jax.parallel import (
    batch_sharding,
    bytes_per_device,
    check_batch_size,
    gather_for_use,
    in_own_layout,
    state_shardings,
    with_shardings,
)
from glide_jax.parallel.sharding import MIN_SHARDED_BYTES
from glide_jax.randomness import stream_key
from glide_jax.train.config import RunConfig
from glide_jax.train.distill import Teacher
from glide_jax.train.meter import product_flops
from glide_jax.train.optimizer import make_optimizer
from glide_jax.train.packing import Packed, Packing, initial_state
from glide_jax.train.state import State, merge, split
from glide_jax.train.step import make_train_step, make_validation_step, training_noise, validation_noise


class Program:
    """The jitted functions of a run over one mesh, with all shardings decided by rule.

    Args:
        config: the run.
        mesh: real devices, or an abstract mesh to plan for devices that are not present.
        min_bytes: smaller arrays are copied to every device (`parallel.partition_spec`).

    Raises:
        GlideError: the devices cannot share a batch equally, or cannot compute in `train.dtype`.

    Attributes:
        abstract_state: shapes, types and shardings of the training state as a checkpoint holds it.
        abstract_params: the same for all parameters; a checkpoint of adapters holds only the adapters.
        abstract_packed: the same for the state as the steps take it.
        packing: converts between the two forms of the state.
        make_state: (key, optional weights) -> packed state, jitted.
        train_step: (packed state, batch) -> (packed state, metrics), jitted; the state passed in is deleted.
        validation_step: (packed params, batch) -> (sum of losses, count), jitted.
    """

    def __init__(self, config: RunConfig, mesh: Mesh | AbstractMesh, min_bytes: int = MIN_SHARDED_BYTES) -> None:
        train = config.train
        steps = config.diffusion.diffusion_steps
        check_batch_size(train.batch_size, mesh, train.gradient_accumulation_steps)
        check_device(train.dtype, "train.dtype")
        self.config, self.mesh = config, mesh
        self.model = Glide(config.model, train.dtype, train.remat, train.lora)
        self.schedule = Schedule.from_config(config.diffusion)
        teacher = None
        if train.distill.num_steps:
            teacher = Teacher(Glide(config.model, train.dtype), self.schedule, train.distill)
        muon = train.optimizer.kind == "muon"
        self.packing = Packing(self.model.abstract_params(), train.trained, min_bytes, muon)
        self.optimizer = make_optimizer(train.optimizer, train.cosine_steps, self.packing.matrices, mesh)
        # Given weights, because drawing them takes long to trace even for shapes alone.
        base = {name: group for name, group in self.model.abstract_params().items() if name != GROUP}
        abstract = jax.eval_shape(self._make_state, self._key(), base)
        tree = jax.eval_shape(self.packing.unpack_state, abstract)
        params = jax.eval_shape(self.packing.unpack, abstract["params"])
        self._gathered = state_shardings(params, mesh, min_bytes)
        self.abstract_params: Params = with_shardings(params, self._gathered)
        self.abstract_state: State = with_shardings(tree, state_shardings(tree, mesh, min_bytes))
        batch, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        self.shardings = jax.tree.map(
            lambda x: x._replace(small=jax.tree.map(lambda _: whole, x.small)) if isinstance(x, Packed) else x,
            state_shardings(abstract, mesh, min_bytes),
            is_leaf=lambda x: isinstance(x, Packed),
        )
        self.abstract_packed: State = with_shardings(abstract, self.shardings)
        self.make_state = jax.jit(self._make_state, out_shardings=self.shardings)
        self.train_step = jax.jit(
            make_train_step(
                self.model,
                self.schedule,
                train,
                self.optimizer,
                training_noise(train.seed, steps, train.loss.timesteps),
                self.packing,
                self._gather,
                self._arrange,
                teacher,
            ),
            in_shardings=(self.shardings, batch),
            out_shardings=(self.shardings, whole),
            donate_argnums=0,
            compiler_options=self._compiler_options(),
        )
        self.validation_step = jax.jit(
            make_validation_step(self.model, self.schedule, validation_noise(steps), self._unpack_and_gather),
            in_shardings=(self.shardings["params"], batch),
            out_shardings=whole,
        )

    def fresh_state(self) -> State:
        """The state of a run from scratch, created on the devices it belongs to."""
        return self.make_state(self._key())

    def state_from(self, params: Params) -> State:
        """The state of a run from given weights; with `reinitialize`, the trained ones are replaced by fresh ones."""
        return self.make_state(self._key(), params)

    def abstract_batch(self, size: Size | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a training batch over all devices; a `size` of None is the model's square."""
        model = self.config.model
        shapes = Shapes(model.image_size, model.text_ctx, model.low_res_size if model.super_res else None, size)
        sharding = batch_sharding(self.mesh)
        train = self.config.train
        arrays = empty_batch(shapes, train.batch_size).arrays
        if train.max_minutes:
            arrays["used"] = np.zeros(train.batch_size, np.float32)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in arrays.items()}

    def compile(self, size: Size | None = None) -> jax.stages.Compiled:
        """The training step, compiled ahead of time for exactly this state and batch size."""
        return self.train_step.lower(self.abstract_packed, self.abstract_batch(size)).compile()

    def step_flops(self, size: Size | None = None) -> float:
        """FLOPs of one device in one step, by `meter.product_flops`."""
        traced = self.train_step.trace(self.abstract_packed, self.abstract_batch(size))
        return product_flops(traced.jaxpr.jaxpr) / self.mesh.size

    def state_bytes(self) -> dict[str, int]:
        """Bytes on each device of every part of the state."""
        trained, _ = split(self.abstract_params, self.config.train.trained)
        held = self.abstract_state | {"params": self.abstract_params, "ema": trained}
        return {part: bytes_per_device(tree) for part, tree in held.items()}

    def _gather(self, params: Params) -> Params:
        return gather_for_use(params, self._gathered)

    def _arrange(self, gradients: Params) -> Params:
        return in_own_layout(gradients, split(self._gathered, self.config.train.trained)[0], self._on_gpu())

    def _unpack_and_gather(self, params: Packed) -> Params:
        return self._gather(self.packing.unpack(params))

    def _on_gpu(self) -> bool:
        return isinstance(self.mesh, Mesh) and self.mesh.devices.flat[0].platform in ("gpu", "cuda")

    def _compiler_options(self) -> dict[str, bool]:
        """XLA options for the training step."""
        if not self._on_gpu():
            return {}
        # Triton would compile dozens of kernels for each matrix product to choose from, for minutes; nine tenths of the
        # work is in cuDNN's convolutions.
        exact = {"xla_gpu_exclude_nondeterministic_ops": True} if self.config.train.deterministic else {}
        return {"xla_gpu_enable_triton_gemm": False, **exact}

    @property
    def abstract_base(self) -> Params:
        """`abstract_params` without the adapters."""
        return {name: group for name, group in self.abstract_params.items() if name != GROUP}

    def _frozen(self, params: Params) -> Params:
        """The weights below adapters, in half the memory if their layers compute in bfloat16."""
        if self.config.train.trained != "lora" or self.config.train.dtype != "bfloat16":
            return params
        flat = flatten_dict(params)
        return unflatten_dict({path: leaf.astype(stored_type(path, jnp.bfloat16)) for path, leaf in flat.items()})

    def _key(self) -> jax.Array:
        return stream_key(self.config.train.seed, "init")

    def _make_state(self, key: jax.Array, params: Params | None = None) -> State:
        train = self.config.train
        if params is None:
            params = self.model.init(key)
        elif train.reinitialize:
            fresh, _ = split(self.model.init(key), train.trained)
            params = merge(fresh, split(params, train.trained)[1])
        else:
            params = self.model.adapt(params, key)
        return initial_state(self.packing.pack(self._frozen(params)), self.optimizer)
