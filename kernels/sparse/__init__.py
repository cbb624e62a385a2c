"""Which keys are worth reading: selection and clusters."""
