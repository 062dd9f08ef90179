"""The pixels of data: pictures of any kind decoded to 8 bits, their statistics, and the scales that follow."""
