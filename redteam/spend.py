"""placeholder: written by the endpoint helper"""
