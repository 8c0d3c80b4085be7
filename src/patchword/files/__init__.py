"""Write files atomically, and read files from untrusted sources safely."""
