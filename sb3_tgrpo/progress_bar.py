"""SB3's progress bar for an algorithm whose rollouts have steps that do not count."""

from stable_baselines3.common.callbacks import ProgressBarCallback


class ValidStepsProgressBar(ProgressBarCallback):
    """Shows ``num_timesteps`` as the algorithm counts them, where SB3's adds ``num_envs`` a step whatever is masked."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._done_before = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self._done_before - self.pbar.n)
        return True
