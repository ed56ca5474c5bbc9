package arm64

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// encodings are what GNU as 2.40 makes of the text.
var encodings = []struct {
	inst inst
	text string
	word uint32
}{
	{fadd(1, 18, 31), "FADD V1.4S, V18.4S, V31.4S", 0x4e3fd641},
	{fsub(31, 1, 18), "FSUB V31.4S, V1.4S, V18.4S", 0x4eb2d43f},
	{fmul(18, 31, 1), "FMUL V18.4S, V31.4S, V1.4S", 0x6e21dff2},
	{fdiv(1, 18, 31), "FDIV V1.4S, V18.4S, V31.4S", 0x6e3ffe41},
	{fmax(31, 1, 18), "FMAX V31.4S, V1.4S, V18.4S", 0x4e32f43f},
	{fcmgt(18, 31, 1), "FCMGT V18.4S, V31.4S, V1.4S", 0x6ea1e7f2},
	{fcmeq(1, 18, 31), "FCMEQ V1.4S, V18.4S, V31.4S", 0x4e3fe641},
	{fcmeq0(31, 9), "FCMEQ V31.4S, V9.4S, #0.0", 0x4ea0d93f},
	{bic(1, 18, 31), "BIC V1.16B, V18.16B, V31.16B", 0x4e7f1e41},
	{fmla(1, 18, 31, 0), "FMLA V1.4S, V18.4S, V31.S[0]", 0x4f9f1241},
	{fmla(31, 1, 18, 1), "FMLA V31.4S, V1.4S, V18.S[1]", 0x4fb2103f},
	{fmla(18, 31, 1, 2), "FMLA V18.4S, V31.4S, V1.S[2]", 0x4f811bf2},
	{fmla(1, 18, 31, 3), "FMLA V1.4S, V18.4S, V31.S[3]", 0x4fbf1a41},
	{ucvtf(31, 9), "UCVTF V31.4S, V9.4S", 0x6e21d93f},
	{umaxv(31, 9), "UMAXV S31, V9.4S", 0x6eb0a93f},
	{fcvtl(31, 9), "FCVTL V31.4S, V9.4H", 0x0e21793f},
	{fcvtl2(9, 31), "FCVTL2 V9.4S, V31.8H", 0x4e217be9},
	{fcvtn(31, 9), "FCVTN V31.4H, V9.4S", 0x0e21693f},
	{fcvtn2(9, 31), "FCVTN2 V9.8H, V31.4S", 0x4e216be9},
	{shll(31, 9), "SHLL V31.4S, V9.4H, #16", 0x2e61393f},
	{shll2(9, 31), "SHLL2 V9.4S, V31.8H, #16", 0x6e613be9},
	{sshll7(31, 9), "SSHLL V31.8H, V9.8B, #7", 0x0f0fa53f},
	{sshll7x2(9, 31), "SSHLL2 V9.8H, V31.16B, #7", 0x4f0fa7e9},
	{ldr(31, 1, 21), "LDR Q31, [X1, X21]", 0x3cf5683f},
	{ldr(1, 17, 21), "LDR Q1, [X17, X21]", 0x3cf56a21},
}

// kind is an instruction without the numbers of its registers.
func kind(text string) string { return regexp.MustCompile(`([VQSX])\d+`).ReplaceAllString(text, "$1") }

// used are the words of the files, by text.
func used(t *testing.T) map[string]string {
	words := map[string]string{}
	for _, text := range Files() {
		for _, m := range regexp.MustCompile(`WORD \$0x([0-9a-f]+) // (.*)`).FindAllStringSubmatch(text, -1) {
			words[m[2]] = m[1]
		}
	}
	if len(words) == 0 {
		t.Fatal("the files have no words")
	}
	return words
}

// Each kind of instruction in the files is in the table, and encoded so.
func TestEncodings(t *testing.T) {
	known := map[string]bool{}
	for _, e := range encodings {
		known[kind(e.text)] = true
		if e.inst.text != e.text || e.inst.word != e.word {
			t.Errorf("got %08x %s, want %08x %s", e.inst.word, e.inst.text, e.word, e.text)
		}
	}
	for text := range used(t) {
		if !known[kind(text)] {
			t.Errorf("%s: no instruction of its kind is in the table", text)
		}
	}
}

// Where binutils for aarch64 are installed every word in the files is compared.
func TestWordsAgreeWithBinutils(t *testing.T) {
	as, err := exec.LookPath("aarch64-linux-gnu-as")
	if err != nil {
		t.Skip(err)
	}
	var source strings.Builder
	var texts, words []string
	for text, word := range used(t) {
		texts, words = append(texts, text), append(words, word)
		fmt.Fprintln(&source, text)
	}
	object := filepath.Join(t.TempDir(), "x.o")
	listing := filepath.Join(t.TempDir(), "x.lst")
	cmd := exec.Command(as, "-aln="+listing, "-o", object, "-")
	cmd.Stdin = strings.NewReader(source.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(listing)
	if err != nil {
		t.Fatal(err)
	}
	// "   1 0000 41D63F4E \tFADD …": the bytes in the order of memory
	lines := regexp.MustCompile(`(?m)^ *\d+ [0-9a-f]{4,} ([0-9A-F]{2})([0-9A-F]{2})([0-9A-F]{2})([0-9A-F]{2})\s`).FindAllStringSubmatch(string(b), -1)
	if len(lines) != len(words) {
		t.Fatalf("%d words in the listing of %d", len(lines), len(words))
	}
	for i, m := range lines {
		if want := strings.ToLower(m[4] + m[3] + m[2] + m[1]); words[i] != want {
			t.Errorf("%s: got %s, want %s", texts[i], words[i], want)
		}
	}
}
