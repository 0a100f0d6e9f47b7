"""Many prompts: generates, ranks and scores images."""

from glide_jax.evaluate.evaluation import Job as Job
from glide_jax.evaluate.evaluation import evaluate as evaluate
from glide_jax.evaluate.run_folder import Candidate as Candidate
from glide_jax.evaluate.run_folder import PromptRecord as PromptRecord
from glide_jax.evaluate.run_folder import RunFolder as RunFolder
from glide_jax.evaluate.scorer import NOISED as NOISED
from glide_jax.evaluate.scorer import NoisedClipScorer as NoisedClipScorer
from glide_jax.evaluate.scorer import Scorer as Scorer
from glide_jax.evaluate.scorer import score as score
from glide_jax.evaluate.scorer import scorer_loader as scorer_loader
