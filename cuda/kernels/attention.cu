#include "attention.cuh"
#include "decode.cuh"
#include "merge.cuh"

// Rows of a block, and the features up to which it serves.
KERNEL(attention_64_64, lc_attention_params, attention_threads, 2, (attention<64, 64, 64>(p)))
KERNEL(attention_64_128, lc_attention_params, attention_threads, 2, (attention<64, 64, 128>(p)))
KERNEL(attention_32_256, lc_attention_params, attention_threads, 2, (attention<32, 64, 256>(p)))
KERNEL(attention_16_512, lc_attention_params, attention_threads, 2, (attention<16, 32, 512>(p)))
KERNEL(attention_16_576, lc_attention_params, attention_threads, 2, (attention<16, 32, 576>(p)))
KERNEL(attention_16_128, lc_attention_params, attention_threads, 2, (attention<16, 64, 128>(p)))
KERNEL(decode_4_128, lc_attention_params, decode_threads, 4, (decode<PlainDecode<4, 128>>(p)))
KERNEL(decode_8_128, lc_attention_params, decode_threads, 4, (decode<PlainDecode<8, 128>>(p)))
KERNEL(decode_4_256, lc_attention_params, decode_threads, 4, (decode<PlainDecode<4, 256>>(p)))
KERNEL(decode_8_256, lc_attention_params, decode_threads, 4, (decode<PlainDecode<8, 256>>(p)))
KERNEL(attention_merge, lc_attention_params, merge_threads, 1, (merge_parts(p)))
