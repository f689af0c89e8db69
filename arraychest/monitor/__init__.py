"""What a chest tells of itself: samples of its memory, and a page that other processes read."""
