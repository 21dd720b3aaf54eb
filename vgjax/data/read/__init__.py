"""Files of a dataset to arrays: pictures, volumes and tables, decoded safely."""
