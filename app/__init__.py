"""The gateway. It never loads torch: models run in the regions' workers."""
