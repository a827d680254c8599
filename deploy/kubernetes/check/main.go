// Reads manifests from standard input and decodes each strictly into the type that the API server would use. An unknown field, a
// field that occurs twice, a wrong type and an object of an unknown kind are errors. deploy/test-kubernetes calls this.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// The kinds of objects that the manifests may hold.
var kinds = map[string]func() any{
	"v1/ConfigMap":                       func() any { return &core.ConfigMap{} },
	"v1/Service":                         func() any { return &core.Service{} },
	"v1/ServiceAccount":                  func() any { return &core.ServiceAccount{} },
	"apps/v1/StatefulSet":                func() any { return &apps.StatefulSet{} },
	"networking.k8s.io/v1/NetworkPolicy": func() any { return &networking.NetworkPolicy{} },
	"policy/v1/PodDisruptionBudget":      func() any { return &policy.PodDisruptionBudget{} },
}

// checkStatefulSet refuses a set that can be decoded but would not work.
func checkStatefulSet(set *apps.StatefulSet) error {
	if set.Spec.Selector == nil || len(set.Spec.Selector.MatchLabels) == 0 {
		return fmt.Errorf("the selector is empty")
	}
	for key, value := range set.Spec.Selector.MatchLabels {
		if set.Spec.Template.Labels[key] != value {
			return fmt.Errorf("the pods lack the label %s=%s, which the selector asks for", key, value)
		}
	}
	pod := set.Spec.Template.Spec
	volumes := map[string]bool{}
	for _, volume := range pod.Volumes {
		volumes[volume.Name] = true
	}
	for _, claim := range set.Spec.VolumeClaimTemplates {
		volumes[claim.Name] = true
	}
	for _, container := range pod.Containers {
		for _, mount := range container.VolumeMounts {
			if !volumes[mount.Name] {
				return fmt.Errorf("container %s mounts %s, which is not a volume", container.Name, mount.Name)
			}
		}
		for name, probe := range map[string]*core.Probe{
			"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
			if probe == nil || (probe.GRPC == nil) == (probe.Exec == nil) {
				return fmt.Errorf("container %s: the %s probe must be one of grpc and exec", container.Name, name)
			}
		}
	}
	return nil
}

func check(document []byte) (string, error) {
	var head meta.TypeMeta
	if err := yaml.Unmarshal(document, &head); err != nil {
		return "", err
	}
	make, known := kinds[head.APIVersion+"/"+head.Kind]
	if !known {
		return "", fmt.Errorf("%s/%s is not one of the expected kinds", head.APIVersion, head.Kind)
	}
	object := make()
	if err := yaml.UnmarshalStrict(document, object); err != nil {
		return head.Kind, err
	}
	if set, ok := object.(*apps.StatefulSet); ok {
		return head.Kind, checkStatefulSet(set)
	}
	return head.Kind, nil
}

func main() {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	objects := 0
	for {
		document, err := reader.Read()
		if err == io.EOF {
			break
		}
		kind := ""
		if err == nil {
			kind, err = check(document)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "object %d (%s): %v\n", objects, kind, err)
			os.Exit(1)
		}
		objects++
	}
	if objects == 0 {
		fmt.Fprintln(os.Stderr, "there is no object")
		os.Exit(1)
	}
	fmt.Printf("%d objects decode strictly\n", objects)
}
