#include "conv/conv_layout.h"

#include "conv/conv_stage.h"

namespace brasa::cpu::BRASA_ISA {

template <class T>
void images_to_channels_last(Context ctx, const T* x, T* y, int64_t batch, int64_t channels,
                             int64_t pixels) {
  convert_images(ctx, x, y, batch, channels, pixels, true);
}

BRASA_INSTANTIATE(images_to_channels_last, float, double)

}  // namespace brasa::cpu::BRASA_ISA
