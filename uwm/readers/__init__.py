"""What reads the encoders: captions of images, images of prompts, before and after an edit."""
