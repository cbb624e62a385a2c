"""What the recipes of the prior and of the two-person block share: the noise levels and the weights of the loss."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
ROOT_WEIGHT, DIFFERENCE_WEIGHT, FOOT_WEIGHT = 6.0, 5.0, 0.05
