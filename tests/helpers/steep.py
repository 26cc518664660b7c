"""A layer whose slope is infinite at black pixels, as that of a gamma curve is."""

import keras


class Gamma(keras.layers.Layer):
    """x ** 0.45."""

    def call(self, x):
        return x**0.45


def classifier(shape, classes, *, embedding=6):
    """A functional network behind such a layer: a map, an embedding of that name, logits."""
    images = keras.Input(shape)
    x = keras.layers.Conv2D(6, 3, padding="same", kernel_initializer=keras.initializers.HeNormal(0))(Gamma()(images))
    x = keras.layers.ReLU(name="map")(x)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    glorot = [keras.initializers.GlorotUniform(seed) for seed in (1, 2)]
    e = keras.layers.Dense(embedding, name="embedding", kernel_initializer=glorot[0])(pooled)
    return keras.Model(images, keras.layers.Dense(classes, name="logits", kernel_initializer=glorot[1])(e))
