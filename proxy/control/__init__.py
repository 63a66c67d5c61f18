"""The control port: one door (`service`), who may pass it (`access`), and its faces (`rest`, `metrics`)."""
