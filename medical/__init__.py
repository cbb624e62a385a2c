"""longtake.medical: the next scan of a patient from earlier ones (SADM), with an interval that covers what it says."""
