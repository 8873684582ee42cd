"""BatchNorm over pooled features, shared by the mechanisms that normalise one vector per image."""

from __future__ import annotations

from torch import Tensor, nn

from attendo._errors import InvalidArgument


class PooledBatchNorm(nn.BatchNorm1d):
    """BatchNorm of one vector per image, (N, C): it cannot train on a batch of one image, and says so.

    Args:
        features: length of the vector.
        asked_by: the mechanism's name, for the error message.
    """

    def __init__(self, features: int, asked_by: str) -> None:
        super().__init__(features)
        self.asked_by = asked_by

    def forward(self, z_NC: Tensor) -> Tensor:
        """Normalise over the batch: (N, C) -> (N, C).

        Raises:
            InvalidArgument: a batch of one image in training.
        """
        if self.training and z_NC.shape[0] < 2:
            raise InvalidArgument(
                f"{self.asked_by}: a batch of 1 image in training leaves its BatchNorm over pooled features a variance "
                f"of 0, and a gate that is the same for every image; it needs 2 images or more. Train with larger "
                f"batches (drop_last=True in the data loader), or freeze that norm with .eval()."
            )
        return super().forward(z_NC)
