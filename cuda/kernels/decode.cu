// Kernels of decode_coded.cuh. Rows of a block, and the features up to which it serves.
#include "decode_coded.cuh"

KERNEL(decode_coded_4_128, lc_attention_params, decode_threads, 4, (decode<CodedDecode<4, 128>>(p)))
KERNEL(decode_coded_8_128, lc_attention_params, decode_threads, 4, (decode<CodedDecode<8, 128>>(p)))
KERNEL(decode_coded_4_256, lc_attention_params, decode_threads, 4, (decode<CodedDecode<4, 256>>(p)))
KERNEL(decode_coded_8_256, lc_attention_params, decode_threads, 4, (decode<CodedDecode<8, 256>>(p)))
