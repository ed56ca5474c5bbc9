package learn

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/safetensors"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// state is what a checkpoint has beside tensors.
type state struct {
	Options   Options  `json:"options"`
	Progress  Progress `json:"progress"`
	AdamSteps int      `json:"adam_steps"`
	Random    []byte   `json:"random"`
	Policy    string   `json:"policy"`
	Text      string   `json:"text"` // SHA-256: of other text or policy, the steps would be others
}

// Save writes the weights to path, and all that Resume needs to path with
// ".resume" after it. Each file appears whole or not at all.
func (t *Trainer) Save(path string) error {
	random, err := t.random.MarshalBinary()
	if err != nil {
		return fmt.Errorf("learn: %w", err)
	}
	s, err := json.Marshal(state{t.Options, t.Progress, t.adam.Steps, random, t.policy.String(), digest(t.text)})
	if err != nil {
		return fmt.Errorf("learn: %w", err)
	}
	f, err := t.Model.File(map[string]string{"training": string(s)})
	if err != nil {
		return err
	}
	for i, p := range t.Model.Params() {
		f.Tensors["adam.m."+p.Name] = safetensors.FromF32(tensor.F32, t.adam.M[i].Data, p.Rows, p.Cols)
		f.Tensors["adam.v."+p.Name] = safetensors.FromF32(tensor.F32, t.adam.V[i].Data, p.Rows, p.Cols)
	}
	if err := safetensors.Write(path+".resume", f); err != nil {
		return err
	}
	if f, err = t.Model.File(nil); err != nil {
		return err
	}
	return safetensors.Write(path, f)
}

// Resume goes on from what Save wrote for path: the same steps as without the
// stop.
func Resume(path string, b kernel.Backend, policy kernel.Policy, text []byte) (*Trainer, error) {
	path += ".resume"
	f, err := safetensors.Read(path)
	if err != nil {
		return nil, err
	}
	t := &Trainer{random: new(rand.PCG)}
	if t.Model, err = model.FromFile(f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var s state
	if err := json.Unmarshal([]byte(f.Metadata["training"]), &s); err != nil {
		return nil, fmt.Errorf("learn: %s: training state: %w", path, err)
	}
	if err := t.random.UnmarshalBinary(s.Random); err != nil {
		return nil, fmt.Errorf("learn: %s: training state: %w", path, err)
	}
	if s.AdamSteps < 0 || s.Progress.Step < 0 {
		return nil, fmt.Errorf("learn: %s: training state: step %d after %d of AdamW, want 0 or more", path, s.Progress.Step, s.AdamSteps)
	}
	if s.Policy != policy.String() {
		return nil, fmt.Errorf("learn: %s was trained under policy %s, want the same, got %v", path, s.Policy, policy)
	}
	if got := digest(text); s.Text != got {
		return nil, fmt.Errorf("learn: %s was trained on a text of SHA-256 %.12s, want the same, got %.12s", path, s.Text, got)
	}
	t.Options, t.Progress, t.adam = s.Options, s.Progress, model.NewAdamW(t.Model)
	t.adam.Steps = s.AdamSteps
	for i, p := range t.Model.Params() {
		if t.adam.M[i].Data, err = f.F32("adam.m."+p.Name, p.Rows, p.Cols); err != nil {
			return nil, fmt.Errorf("learn: %s: %w", path, err)
		}
		if t.adam.V[i].Data, err = f.F32("adam.v."+p.Name, p.Rows, p.Cols); err != nil {
			return nil, fmt.Errorf("learn: %s: %w", path, err)
		}
		for k, v := range t.adam.V[i].Data {
			if m := t.adam.M[i].Data[k]; !(v >= 0 && v <= math.MaxFloat32) || !(m >= -math.MaxFloat32 && m <= math.MaxFloat32) {
				return nil, fmt.Errorf("learn: %s: moments of %s are %v and %v, want finite and the second not negative", path, p.Name, m, v)
			}
		}
	}
	return t, t.open(b, policy, text)
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
