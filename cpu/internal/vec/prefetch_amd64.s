//go:build amd64 && !purego

#include "textflag.h"

// func Prefetch(p unsafe.Pointer, stride, n, size int)
TEXT ·Prefetch(SB), NOSPLIT, $0-32
	MOVQ p+0(FP), AX
	MOVQ stride+8(FP), BX
	MOVQ n+16(FP), CX
	MOVQ size+24(FP), DX
	TESTQ CX, CX
	JLE  done

row:
	XORQ SI, SI

line:
	PREFETCHT1 (AX)(SI*1)
	ADDQ $64, SI
	CMPQ SI, DX
	JLT  line
	ADDQ BX, AX
	DECQ CX
	JNZ  row

done:
	RET
